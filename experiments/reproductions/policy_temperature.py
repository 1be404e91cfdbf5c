"""The particle filter needs a policy that is neither too cold nor too hot.

Source: Puri et al. 2025, arXiv 2502.01618, figure 6: 0.8 is the best of the tried
temperatures of Llama-3.2-1B-Instruct; at low temperatures particles do not differ.
Cost: 5 x 500 problems x 255 rollouts; small: minutes on 2 cores,
not timed.
Command: tsi reproduce policy_temperature [--small]
"""

from tsi.experiments.reproductions.published_models import embedded, published

TEMPERATURES = (0.4, 0.6, 0.8, 1.0, 1.2)
METHODS = ("particle_filter", "self_consistency")
FULL = [published(f"t{t}", temperature=t, methods=METHODS) for t in TEMPERATURES]
SMALL = [embedded(f"t{t}", temperature=t, methods=METHODS) for t in TEMPERATURES]
