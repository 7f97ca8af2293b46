"""Looking inside a model: what its prompts are near to, when they enter, and how much attention
they get.
"""
