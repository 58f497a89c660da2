"""Search strategies that replace the sampler: scan, beam, refine. Defined in `david.candidates.strategies`."""

from david.candidates.strategies import Beam, Refine, Scan, Strategy, singles, strategy_named

__all__ = ["Beam", "Refine", "Scan", "Strategy", "singles", "strategy_named"]
