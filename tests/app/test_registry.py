"""The registry: what is loaded when, and what a broken artifact costs."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from app.errors import ModelUnavailableError, NotReadyError, UnknownModelError, UnusableVersionError
from app.registry import Registry
from app.serving.engines import Engines
from tests.app import artifacts
from tests.app.pictures import png
from training import artifact, picture
from training.artifact import Aliases


def drive(
    models: Path,
    scenario: Callable[[Registry], Awaitable[None]],
    default: str | None = None,
    retry_seconds: float = 3600,
    load: bool = True,
) -> None:
    """Run a scenario with a registry that has loaded its models."""

    async def run() -> None:
        engines = Engines("torchscript-f32", "cpu", 1, 4)
        registry = Registry(models, default, engines, retry_seconds=retry_seconds)
        try:
            if load:
                await registry.load_all()
            await scenario(registry)
        finally:
            await registry.close()

    asyncio.run(run())


def test_broken_models_cost_only_themselves(models: Path) -> None:
    async def scenario(registry: Registry) -> None:
        registry.check_ready()
        infos = {name: await registry.describe(name) for name in await registry.names()}
        assert {name: info.loaded for name, info in infos.items()} == {
            "changed": (),
            "cifar10": (1,),
            "pets": (1,),
            "unpromoted": (),
            "unreadable": (),
        }
        assert [name for name, info in infos.items() if info.error] == ["changed", "unreadable"]
        assert "model.ts was changed after it was written" in str(infos["changed"].error)
        assert "manifest.json is not a valid manifest" in str(infos["unreadable"].error)
        assert infos["unpromoted"].serving is None

    drive(models, scenario)


def test_nothing_answers_before_the_models_are_loaded(models: Path) -> None:
    async def scenario(registry: Registry) -> None:
        with pytest.raises(NotReadyError, match="being loaded"):
            registry.check_ready()
        with pytest.raises(NotReadyError, match="being loaded"):
            await registry.get("cifar10", None)
        await registry.load_all()
        registry.check_ready()
        assert (await registry.get("cifar10", None)).version == 1

    drive(models, scenario, load=False)


def test_other_version_is_loaded_once_when_asked_for(models: Path) -> None:
    async def scenario(registry: Registry) -> None:
        found = await asyncio.gather(*(registry.get("cifar10", 2) for _ in range(20)))
        assert {id(served) for served in found} == {id(found[0])}
        assert (found[0].name, found[0].version) == ("cifar10", 2)
        assert (await registry.get("cifar10", None)).version == 1
        assert (await registry.describe("cifar10")).loaded == (1, 2)

    drive(models, scenario)


@pytest.mark.parametrize(
    ("names", "setting", "expected"),
    [(("zoo", "cifar10", "a"), None, "cifar10"), (("zoo", "a"), None, "a"), (("a", "cifar10"), "a", "a")],
)
def test_default_model(tmp_path: Path, names: tuple[str, ...], setting: str | None, expected: str) -> None:
    for name in names:
        artifacts.write(tmp_path, name, seed=1)

    async def scenario(registry: Registry) -> None:
        assert (await registry.get(None, None)).name == expected
        assert [name for name in names if (await registry.describe(name)).default] == [expected]

    drive(tmp_path, scenario, setting)


def test_default_model_that_is_not_there(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(registry: Registry) -> None:
        with pytest.raises(UnknownModelError, match=r"no model 'ship'\. Models: changed, cifar10"):
            await registry.get(None, None)
        assert (await registry.get("cifar10", None)).name == "cifar10"

    drive(models, scenario, "ship")
    assert "The default model ship is not in" in caplog.text


def test_readiness_waits_for_the_default_model_that_was_set(tmp_path: Path) -> None:
    artifacts.write(tmp_path, "pets", seed=1)

    async def scenario(registry: Registry) -> None:
        with pytest.raises(NotReadyError, match=r"There is no model 'ship'\. Models: pets\. Mend APP_DEFAULT_MODEL"):
            registry.check_ready()
        script = artifacts.write(tmp_path, "ship", seed=2, promote=False) / artifact.SCRIPT
        await registry.refresh()
        with pytest.raises(NotReadyError, match="No version of the default model 'ship' is in production"):
            registry.check_ready()
        whole = script.read_bytes()
        artifacts.change_a_byte(script)
        artifact.write_aliases(tmp_path, "ship", Aliases(production=1, history=(1,)))
        await registry.refresh()
        with pytest.raises(NotReadyError, match=r"model.ts was changed"):
            registry.check_ready()
        script.write_bytes(whole)
        await registry.refresh()
        registry.check_ready()
        assert (await registry.get(None, None)).name == "ship"

    drive(tmp_path, scenario, "ship", retry_seconds=0)


def test_readiness_needs_no_model_that_was_not_set(tmp_path: Path) -> None:
    artifacts.write(tmp_path, "pets", seed=1)

    async def scenario(registry: Registry) -> None:
        registry.check_ready()
        assert (await registry.get(None, None)).name == "pets"

    drive(tmp_path, scenario)


def test_broken_production_version_is_not_replaced_by_another(tmp_path: Path) -> None:
    artifacts.write(tmp_path, "pets", seed=1)
    artifacts.change_a_byte(artifacts.write(tmp_path, "pets", seed=2) / artifact.WEIGHTS)

    async def scenario(registry: Registry) -> None:
        with pytest.raises(NotReadyError, match=r"weights.safetensors was changed"):
            registry.check_ready()
        with pytest.raises(ModelUnavailableError, match=r"weights.safetensors was changed"):
            await registry.get("pets", None)
        assert (await registry.get("pets", 1)).version == 1

    drive(tmp_path, scenario)


def test_loaded_version_goes_on_when_its_files_change(tmp_path: Path) -> None:
    folder = artifacts.write(tmp_path, "pets", seed=1)

    async def scenario(registry: Registry) -> None:
        artifacts.change_a_byte(folder / artifact.SCRIPT)
        served = await registry.get("pets", None)
        pixels = picture.decode(png(1), artifacts.SIZE)
        assert (await served.batcher.predict(pixels)).shape == (len(artifacts.CLASSES),)

    drive(tmp_path, scenario)


@pytest.mark.parametrize("name", [artifact.SCRIPT, artifact.WEIGHTS])
def test_missing_file(tmp_path: Path, name: str) -> None:
    (artifacts.write(tmp_path, "pets", seed=1) / name).unlink()

    async def scenario(registry: Registry) -> None:
        with pytest.raises(ModelUnavailableError, match=f"{name} cannot be read"):
            await registry.get("pets", 1)

    drive(tmp_path, scenario)


def test_production_version_that_is_gone(tmp_path: Path) -> None:
    artifacts.write(tmp_path, "pets", seed=1)
    shutil.rmtree(artifacts.write(tmp_path, "pets", seed=2))

    async def scenario(registry: Registry) -> None:
        with pytest.raises(ModelUnavailableError, match=r"Version 2 of pets is in production and is not there"):
            await registry.get("pets", None)

    drive(tmp_path, scenario)


def test_unreadable_aliases(tmp_path: Path) -> None:
    artifacts.write(tmp_path, "pets", seed=1)
    (tmp_path / "pets" / artifact.ALIASES).write_text("{")

    async def scenario(registry: Registry) -> None:
        with pytest.raises(ModelUnavailableError, match=r"aliases.json cannot be read"):
            await registry.get("pets", None)
        assert "aliases.json cannot be read" in str((await registry.describe("pets")).error)
        assert (await registry.get("pets", 1)).version == 1

    drive(tmp_path, scenario)


def test_failure_is_remembered_for_a_while(tmp_path: Path) -> None:
    folder = artifacts.write(tmp_path, "pets", seed=1)
    whole = (folder / artifact.SCRIPT).read_bytes()
    artifacts.change_a_byte(folder / artifact.SCRIPT)

    async def scenario(registry: Registry) -> None:
        (folder / artifact.SCRIPT).write_bytes(whole)
        with pytest.raises(ModelUnavailableError, match=r"model.ts was changed") as caught:
            await registry.get("pets", None)
        assert 0 < caught.value.retry_after <= 3600

    drive(tmp_path, scenario)


def test_mended_artifact_serves_without_a_restart(tmp_path: Path) -> None:
    folder = artifacts.write(tmp_path, "pets", seed=1)
    whole = (folder / artifact.SCRIPT).read_bytes()
    artifacts.change_a_byte(folder / artifact.SCRIPT)

    async def scenario(registry: Registry) -> None:
        with pytest.raises(ModelUnavailableError):
            await registry.get("pets", None)
        (folder / artifact.SCRIPT).write_bytes(whole)
        assert (await registry.get("pets", None)).version == 1
        assert (await registry.describe("pets")).error is None
        registry.check_ready()

    drive(tmp_path, scenario, retry_seconds=0)


def test_model_that_came_later_serves_without_a_restart(tmp_path: Path) -> None:
    async def scenario(registry: Registry) -> None:
        with pytest.raises(UnknownModelError, match="There is no model in the folder"):
            await registry.get(None, None)
        with pytest.raises(NotReadyError, match="There is no model in the folder"):
            registry.check_ready()
        artifacts.write(tmp_path, "pets", seed=1)
        assert (await registry.get(None, None)).name == "pets"
        artifacts.write(tmp_path, "birds", seed=2)
        assert (await registry.get("birds", None)).name == "birds"

    drive(tmp_path, scenario)


def test_production_stays_until_it_is_looked_at(tmp_path: Path) -> None:
    artifacts.write(tmp_path, "pets", seed=1)

    async def scenario(registry: Registry) -> None:
        artifacts.write(tmp_path, "pets", seed=2, promote=False)
        artifact.write_aliases(tmp_path, "pets", Aliases(production=2, history=(1, 2)))
        info = await registry.describe("pets")
        assert (info.serving, info.aliases.production) == (1, 2)
        assert (await registry.get("pets", None)).version == 1

    drive(tmp_path, scenario)


def test_refresh_follows_what_is_promoted(tmp_path: Path) -> None:
    artifacts.write(tmp_path, "pets", seed=1)

    async def scenario(registry: Registry) -> None:
        for seed in (2, 3):
            artifacts.write(tmp_path, "pets", seed, promote=False)
        for version, loaded in ((2, (1, 2)), (3, (2, 3)), (2, (2, 3))):
            artifact.write_aliases(tmp_path, "pets", Aliases(production=version, history=(version,)))
            await registry.refresh()
            info = await registry.describe("pets")
            # The one before stays for a quick way back; older ones go.
            assert (info.serving, info.loaded) == (version, loaded)
            assert (await registry.get("pets", None)).version == version

    drive(tmp_path, scenario)


def test_refresh_loads_models_that_came_later(tmp_path: Path) -> None:
    async def scenario(registry: Registry) -> None:
        artifacts.write(tmp_path, "pets", seed=1)
        await registry.refresh()
        assert (await registry.describe("pets")).loaded == (1,)

    drive(tmp_path, scenario)


def test_refresh_follows_folders_that_are_replaced(tmp_path: Path) -> None:
    for seed in (1, 2):
        artifacts.write(tmp_path, "pets", seed, promote=seed == 1)
    elsewhere = tmp_path / "elsewhere"
    for seed in (3, 4):
        artifacts.write(elsewhere, "pets", seed, classes=("bird", "cat"), promote=False)

    async def classes(registry: Registry, version: int | None) -> int:
        return len((await registry.get("pets", version)).manifest.classes)

    async def scenario(registry: Registry) -> None:
        assert [await classes(registry, version) for version in (None, 2)] == [10, 10]
        for version in ("1", "2"):
            shutil.rmtree(tmp_path / "pets" / version)
        await registry.refresh()
        assert "Version 1 of pets is in production and is not there" in str((await registry.describe("pets")).error)
        assert await classes(registry, None) == 10
        for version in ("1", "2"):
            shutil.copytree(elsewhere / "pets" / version, tmp_path / "pets" / version)
        artifacts.change_a_byte(tmp_path / "pets" / "1" / artifact.SCRIPT)
        await registry.refresh()
        assert await classes(registry, None) == 10  # what cannot be used does not take over
        shutil.copy(elsewhere / "pets" / "1" / artifact.SCRIPT, tmp_path / "pets" / "1")
        await registry.refresh()
        assert [await classes(registry, version) for version in (None, 2)] == [2, 2]
        assert (await registry.describe("pets")).error is None

    drive(tmp_path, scenario, retry_seconds=0)


def test_broken_version_does_not_take_over(tmp_path: Path) -> None:
    artifacts.write(tmp_path, "pets", seed=1)

    async def scenario(registry: Registry) -> None:
        folder = artifacts.write(tmp_path, "pets", seed=2)
        whole = (folder / artifact.SCRIPT).read_bytes()
        artifacts.change_a_byte(folder / artifact.SCRIPT)
        await registry.refresh()
        info = await registry.describe("pets")
        assert (info.serving, info.aliases.production) == (1, 2)
        assert "model.ts was changed" in str(info.error)
        assert (await registry.get("pets", None)).version == 1
        with pytest.raises(UnusableVersionError, match=r"model.ts was changed"):
            await registry.prepare("pets", 2)
        (folder / artifact.SCRIPT).write_bytes(whole)
        await registry.prepare("pets", 2)  # however short a time ago it was broken
        await registry.refresh()
        assert (await registry.describe("pets")).error is None
        assert (await registry.get("pets", None)).version == 2

    drive(tmp_path, scenario)


def test_model_whose_folder_is_gone_answers_no_more(tmp_path: Path) -> None:
    for seed, name in enumerate(("birds", "pets")):
        artifacts.write(tmp_path, name, seed)

    async def scenario(registry: Registry) -> None:
        shutil.move(tmp_path / "pets", tmp_path.with_name(f"{tmp_path.name}-pets"))
        await registry.refresh()
        with pytest.raises(UnknownModelError, match="There is no model 'pets'"):
            await registry.get("pets", None)
        with pytest.raises(UnknownModelError, match="There is no model 'pets'"):
            await registry.get("pets", 1)
        assert (await registry.get("birds", None)).name == "birds"
        shutil.move(tmp_path.with_name(f"{tmp_path.name}-pets"), tmp_path / "pets")
        await registry.refresh()
        assert (await registry.describe("pets")).loaded == (1,)

    drive(tmp_path, scenario)


def test_models_go_on_when_the_disk_is_gone(tmp_path: Path) -> None:
    artifacts.write(tmp_path / "models", "pets", seed=1)

    async def scenario(registry: Registry) -> None:
        shutil.move(tmp_path / "models", tmp_path / "elsewhere")
        for folder_is_there in (False, True):
            if folder_is_there:
                (tmp_path / "models").mkdir()
            await registry.refresh()
            assert (await registry.get(None, None)).name == "pets"

    drive(tmp_path / "models", scenario)


@pytest.mark.parametrize("name", ["cats", "../pets", "\0", "x" * 5000, ""])
def test_names_that_nobody_gave_leave_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    artifacts.write(tmp_path / "models", "pets", seed=1)
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / artifact.CANARY).write_text("no trial")

    async def scenario(registry: Registry) -> None:
        logged = len(caplog.records)
        with pytest.raises(UnknownModelError, match="There is no model ") as refused:
            await registry.follow(name)
        assert len(str(refused.value)) < 200
        with pytest.raises(UnknownModelError, match="There is no model "):
            await registry.trials.report(name)
        assert len(caplog.records) == logged
        assert not registry._following

    drive(tmp_path / "models", scenario)
