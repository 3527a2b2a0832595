"""The thin library of *Differential Equations for Continuous-Time Deep Learning*."""
