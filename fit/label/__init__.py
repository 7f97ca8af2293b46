"""A page in the browser to label images on."""
