"""Saved models on the Hugging Face Hub."""

from pathlib import Path

from unet_diffusion.errors import UserError


def download(repo_id: str, key: str) -> Path:
    """Downloads a saved model to the cache of the Hub; errors start with `key`."""
    from huggingface_hub import snapshot_download

    files = ["config.yaml", "model.safetensors", "README.md"]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=files))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}=hf://{repo_id}: the download failed ({error}).") from error


def repo_id_of(snapshot: Path) -> str:
    """The `user/name` of a folder in the cache of the Hub."""
    return snapshot.parents[1].name.removeprefix("models--").replace("--", "/")


def upload(folder: Path, repo_id: str, private: bool, token: str | None) -> str:
    """Uploads a folder, creates the repository if needed, and returns the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder))
