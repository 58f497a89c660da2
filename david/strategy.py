"""Search strategies that replace the sampler: scan, beam, refine. Defined in `david.candidates.strategies`."""

from david.candidates.strategies import Beam, Refine, Scan, Strategy, singles, strategy_named

named = strategy_named  # the name of version 0.1.0

__all__ = ["Beam", "Refine", "Scan", "Strategy", "named", "singles", "strategy_named"]
