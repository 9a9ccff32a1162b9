/** Folders of this server that the user is looking at. */
import type { FileBrowser } from '@jupyterlab/filebrowser';
import type { Contents } from '@jupyterlab/services';

/** Names of the drive that holds this server's own files; the second one is that of real-time collaboration. */
const OWN_DRIVES = ['', 'RTC'];

/**
 * The folder that a file browser shows, below the server's root.
 *
 * @returns null where there is no file browser, or one for other files (those of a session, say)
 */
export function shownFolder(
  browser: FileBrowser | null,
  contents: Contents.IManager
): string | null {
  const path = browser?.model.path;
  return path !== undefined && OWN_DRIVES.includes(contents.driveName(path))
    ? contents.localPath(path)
    : null;
}

/** The folder that is selected in a file browser, or else the one that it shows; null as with `shownFolder`. */
export function chosenFolder(
  browser: FileBrowser | null,
  contents: Contents.IManager
): string | null {
  const shown = shownFolder(browser, contents);
  const selected = [...(browser?.selectedItems() ?? [])];
  return shown !== null && selected.length === 1 && selected[0].type === 'directory'
    ? contents.localPath(selected[0].path)
    : shown;
}
