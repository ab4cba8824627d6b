"""Cleaning made for chat rows: what is measured, flagged, redacted and dropped, row by row, before anything is tokenised.

`judge.py` tells the story of one part; each other file is one kind of rule. Nothing here looks at two rows at once but
`scores.py` (thresholds by share) and `model_scores.py` (a model's pass over the whole set).
"""
