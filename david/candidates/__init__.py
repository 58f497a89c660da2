"""Where recipes come from: search spaces, strategies and neighbours, and the pruner that stops hopeless trials.

`spaces` holds the table of the built-in spaces, `strategies` searches without a sampler.
"""
