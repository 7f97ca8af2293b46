"""Shared by all folders: errors, files, downloads, the start of a command. Importing it needs no
package.
"""
