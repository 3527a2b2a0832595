"""Problems as mathematics: data sets and equations, without networks, plots or training."""
