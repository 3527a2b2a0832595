"""The experiments of the chapter on stochastic control."""
