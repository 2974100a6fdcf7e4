"""Training with PyTorch Lightning: settings, presets, files, and the loop around `lstmvid.FusedComposite`.

Needs the extra ``train``. Nothing is imported here, so that reading a model file does not wait for Lightning.
"""
