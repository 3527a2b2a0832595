"""Problems as mathematics: data sets, densities, equations, without networks, plots or training.

Where a closed form exists, the problem ships it as a `Potential`. Import from the modules.
"""
