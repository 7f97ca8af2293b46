"""Write the features of images: see `python tools/embed.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("embed")
