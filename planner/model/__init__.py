"""What a layer is: the model description, its parameters, FLOP and saved activations."""
