"""The best classifier for a folder of images: what was tried, an honest estimate, and a folder to
predict from.
"""
