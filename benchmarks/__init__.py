"""Speed, size, fidelity and accuracy, each one command; and the demo."""
