"""The recurrent graphs of the data set: textbook unrollings of published architectures.

Batch 1, a few time steps unrolled, in flax. Vocabularies are small, and each step has a softmax of
its own, so that no node holds more than a third of the work. A graph named `-raw` is the trace of
its namesake before fusing, on the same side of the split.
"""

from __future__ import annotations

from .rows import Row, models_of

_TRAIN: tuple[Row, ...] = (
    ("lstm-lm", "lstm-lm", "language.lstm_lm", "2 x 650, 10,000 words, 12 steps"),
    ("awd-lstm", "lstm-lm", "language.awd_lstm", "1150, 1150, 400, tied words, 10 steps"),
    ("lstmp-lm", "lstm-lm", "language.lstmp_lm", "2 x 800 projected to 512, peepholes, 10 steps"),
    ("gru-lm", "gru-lm", "language.gru_lm", "3 x 512, 8,000 words, 10 steps"),
    ("rnn-lm", "rnn-lm", "language.rnn_lm", "400, 10,000 words, 20 steps"),
    ("highway-lm", "highway-rnn", "language.highway_lm", "depth 10, 830, tied words, 6 steps"),
    ("qrnn-lm", "qrnn", "language.qrnn_lm", "2 x 640, window 2, 10,000 words, 12 steps"),
    ("sru", "sru", "language.sru_classifier", "4 x 512, 12 words to one of 6 classes"),
    ("indrnn-lm", "indrnn", "language.indrnn_lm", "10 x 256, residual, 50 characters, 8 steps"),
    ("elmo", "elmo", "language.elmo", "2 x 4096 projected to 512 both ways, 5 words of 50"),
    ("bilstm-crf", "bilstm-crf", "language.bilstm_tagger", "100 both ways, 8 words of 3 letters"),
    ("clockwork-rnn", "clockwork-rnn", "signal.clockwork", "5 x 64, periods 1 to 16, 24 steps"),
    ("mgu", "mgu", "signal.mgu_rows", "100, the 28 rows of a digit"),
    ("convlstm", "convlstm", "signal.conv_lstm", "128-64-64, 16 x 16 x 16, 4 frames in, 4 out"),
    ("show-and-tell", "show-and-tell", "signal.show_and_tell", "224 x 224 x 3, 8 of 9,000 words"),
    ("lstnet", "lstnet", "signal.lstnet", "8 series, window 29, skip 6"),
    ("dcrnn", "dcrnn", "signal.dcrnn", "207 sensors, 2 x 64, 4 steps in, 3 out"),
    ("deepspeech2", "deepspeech", "speech.deep_speech", "2 conv, 5 x 1280 both ways, 10 steps"),
    ("deepspeech2-gru", "deepspeech", "speech.deep_speech_streaming", "3 conv, 3 x 1280, 12 steps"),
    ("handwriting", "handwriting", "speech.handwriting", "3 x 400, skips, peepholes, 8 steps"),
    ("pointer-network", "pointer", "sequence.pointer_network", "512, 10 points of the plane"),
    ("neural-turing", "neural-turing", "sequence.turing_machine", "100, 128 slots of 20, 6 steps"),
)
_VALID: tuple[Row, ...] = (
    ("wavernn", "wavernn", "speech.wave_rnn", "896, 8 samples of 16 bits"),
    ("lstm-autoencoder", "lstm-autoencoder", "sequence.lstm_autoencoder", "2048, 8 images of 1024"),
)
_TEST: tuple[Row, ...] = (
    ("rnnsearch", "nmt", "sequence.rnnsearch", "1000, 16,000 words, 7 words to 5"),
    ("luong-nmt", "nmt", "sequence.luong", "4 + 4 x 1000, 16,000 words, 6 words to 5"),
    ("gnmt", "nmt", "sequence.gnmt", "8 + 8 x 1024, 32,000 words, 4 words to 4"),
    ("tree-lstm", "tree-lstm", "sequence.tree_lstm", "binary, 150, 13 words"),
    ("tree-lstm-deps", "tree-lstm", "sequence.tree_lstm_dependency", "child-sum, 168, 13 words"),
    ("las", "las", "speech.listen_attend_spell", "4 x 256 both ways, 16 frames to 6 characters"),
    ("crnn", "crnn", "signal.text_reader", "7 conv, 2 x 256 both ways, 32 x 60 pixels"),
)
_RAW = (
    *("lstm-lm", "gru-lm", "clockwork-rnn", "convlstm", "show-and-tell", "pointer-network"),
    *("wavernn", "rnnsearch", "tree-lstm"),
)

MODELS = models_of("rnn", {"train": _TRAIN, "valid": _VALID, "test": _TEST}, _RAW, "recurrent")
