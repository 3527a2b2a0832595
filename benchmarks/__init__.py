"""Side by side with peers: `make bench` prints ratios, never asserts them."""
