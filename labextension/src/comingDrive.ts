/**
 * The files of a session for as long as it is not known whether the session is there. After a reload of the page
 * JupyterLab opens documents again by itself, at once. Without a drive of their name it would ask the local server for
 * them, which knows none of them, or, worse, has a file that is called so.
 */
import { PathExt } from '@jupyterlab/coreutils';
import type { Contents } from '@jupyterlab/services';
import { Drive, ServerConnection } from '@jupyterlab/services';

import { shortId } from './tokens';

/** The name of the drive with the files of the session with that id. */
export function driveName(id: string): string {
  return `clearml-${shortId(id)}`;
}

/** The name of the drive of a session that a path is on; undefined where it is on none. */
export function driveOf(path: string): string | undefined {
  return /^clearml-[0-9a-f]{8}(?=:)/.exec(path)?.[0];
}

/** Lets documents be opened, and their contents wait for the drive that takes its place. */
export class ComingDrive extends Drive {
  /** `coming` is the drive of the session, null where there will be none. */
  constructor(
    name: string,
    private readonly _coming: Promise<Contents.IDrive | null>
  ) {
    super({
      name,
      // Nothing else can be had before, least of all from the local server.
      serverSettings: ServerConnection.makeSettings({ fetch: refuse })
    });
    void _coming.then(drive => {
      this._isGone = drive === null;
    });
  }

  override async get(
    localPath: string,
    options?: Contents.IFetchOptions
  ): Promise<Contents.IModel> {
    if (this._isGone) {
      return refuse();
    }
    // The look before a document is opened: JupyterLab's start waits for it.
    if (options?.content === false && options.type === undefined) {
      return unread(localPath);
    }
    const drive = await this._coming;
    // What waits for a session that is gone is closed. Were it told so, JupyterLab would show that in a dialog.
    return drive ? drive.get(localPath, options) : new Promise(() => undefined);
  }

  private _isGone = false;
}

/** What is known of a file that nobody has looked at. */
function unread(path: string): Contents.IModel {
  return {
    name: PathExt.basename(path),
    path,
    type: 'file',
    writable: true,
    created: '',
    last_modified: '',
    mimetype: '',
    content: null,
    format: null
  };
}

function refuse(): Promise<never> {
  return Promise.reject(new Error('The ClearML session of this file is not connected'));
}
