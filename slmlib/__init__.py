"""Small language models under compute constraints: the package behind the book."""

from .corpora import Corpus, CorpusDamaged, CorpusUnavailable, Vocabulary, load_corpus, read_corpus
from .models import LinearConfig, MLPConfig, TransformerConfig, build, generate, n_parameters
from .training import Diverged, History, TrainingConfig, budget, evaluate, fit
from .windows import Evaluation, Windows

__version__ = "0.1.0"
