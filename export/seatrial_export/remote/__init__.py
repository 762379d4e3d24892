"""Verifying and timing where other hardware is: an export here, an agent with the same code there.

Export --lease, files, errands--> Agent -> a child process for each errand. The export builds what any machine can build, asks the
source, chooses and writes the report. What decides about a figure happens there and crosses the network as one errand.
"""
