"""Print the settings of a method in a protocol: see `python tools/recipe.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("recipe")
