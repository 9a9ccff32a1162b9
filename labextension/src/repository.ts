/** The git repository around a folder of this server: what the launch dialog offers to clone. */
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import type { SessionAPI } from './request';
import { SessionError } from './request';
import type { IRepository } from './tokens';

/** Looks at a folder; the newest question wins. */
export class RepositoryOffer {
  constructor(private readonly _api: SessionAPI) {}

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** The folder that was looked at last, below the server's root; null before. */
  folder: string | null = null;
  /** What could be cloned; null where nothing can be, or while it is looked for. */
  found: IRepository | null = null;
  /** Why nothing can be cloned. */
  error: SessionError | null = null;
  looking = false;

  /** True where the folder simply lies in no repository: there is nothing to offer, and nothing to tell. */
  get isNone(): boolean {
    return this.error?.code === 'not_a_repository';
  }

  /** Look, or look again. What is known of the same folder stays in sight meanwhile. */
  async look(folder: string): Promise<void> {
    this._aborter?.abort();
    const aborter = (this._aborter = new AbortController());
    if (folder !== this.folder) {
      this.found = null;
    }
    this.folder = folder;
    this.error = null;
    this.looking = true;
    this._changed.emit();
    let found: IRepository | null = null;
    let error: SessionError | null = null;
    try {
      found = await this._api.repository(folder, aborter.signal);
    } catch (reason) {
      error = SessionError.from(reason);
    }
    if (this._aborter === aborter) {
      this.found = found;
      this.error = error;
      this.looking = false;
      this._changed.emit();
    }
  }

  private readonly _changed = new Signal<this, void>(this);
  private _aborter: AbortController | null = null;
}
