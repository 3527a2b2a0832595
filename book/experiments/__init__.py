"""What the chapters compute: settings, fits and measurements, one package a chapter."""
