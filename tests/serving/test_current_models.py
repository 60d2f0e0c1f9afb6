"""The models of a thread, which the threads of other bundles read."""

from runinference.caching.model_cache import CacheLimits
from runinference.serving.current_models import CurrentModels, SessionConfig
from runinference.serving.registry import ModelRegistry, ProcessShared


class ReadingRegistry(ModelRegistry):
    """Reads the models of a thread as soon as they are registered, as another thread may."""

    def add_session(self, session):
        self.names = session.current_names()
        super().add_session(session)


def fail_to_load(version, start_loading):
    raise AssertionError("no model is needed")


def test_the_models_of_a_thread_can_be_read_as_soon_as_they_are_registered():
    registry = ReadingRegistry(CacheLimits())
    config = SessionConfig(ProcessShared(CacheLimits()), fail_to_load)
    models = CurrentModels(config, registry)
    assert registry.names == models.current_names() == set()
