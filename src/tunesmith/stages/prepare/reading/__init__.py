"""From the files of a source to rows, or to coded problems with their place."""
