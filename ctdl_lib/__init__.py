"""The library of the book *Differential Equations for Continuous-Time Deep Learning*."""
