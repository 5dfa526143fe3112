"""One HTML page on a run or a comparison, which needs no other file and makes no request."""
