"""Problems that the chapters solve: data sets, densities and control problems.

They contain no networks, plots or training. If a value function is known, the problem returns it as
a `Potential`. Import from the modules.
"""
