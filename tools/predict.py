"""Print the most probable classes of images: see `python tools/predict.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("predict")
