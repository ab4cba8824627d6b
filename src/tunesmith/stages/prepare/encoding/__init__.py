"""From rows to token ids with the spans that are learned, and what only ids can tell of a row."""
