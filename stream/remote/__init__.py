"""Networks on another machine: many boxes share a few replicas of the networks on a Ray cluster (docs/scale.md)."""
