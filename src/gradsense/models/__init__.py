"""Small language models with a classification head: build, tokenize, save and load."""
