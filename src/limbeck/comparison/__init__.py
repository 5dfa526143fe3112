"""Which method is better, and how sure that is: pure functions of results, without torch."""
