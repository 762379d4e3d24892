"""`seatrial tune`: which settings of serving answer the most requests on this machine, under a bound on latency."""
