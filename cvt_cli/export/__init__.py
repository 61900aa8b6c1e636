"""Export of a checkpoint to a file that other runtimes read: ONNX, or a torch.export program."""
