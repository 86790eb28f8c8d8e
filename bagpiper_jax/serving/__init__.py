"""`bagpiper serve`: a model over HTTP, in the form of OpenAI's chat completions."""
