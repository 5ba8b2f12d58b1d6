"""The picture of what the scripts do: a sequence diagram and the state of the world, live or from a trace.

index.html, page.css and page.js draw it. report.py puts all three into one file with a trace (docs/trace.md);
server.py serves them while the lab runs, with watch.py's view of it.
"""
