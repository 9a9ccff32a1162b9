/**
 * What is being typed into the launch dialog. It outlives the dialog: nothing that was typed is lost when the
 * dialog is closed, or when the server refuses the launch.
 */
import type { TranslationBundle } from '@jupyterlab/translation';
import { PromiseDelegate } from '@lumino/coreutils';
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import { isLive } from './actions';
import type { FieldErrors } from './launchValues';
import {
  empty,
  known,
  onlyOnce,
  prune,
  same,
  sameRepository,
  validate,
  withoutOnce
} from './launchValues';
import { tell } from './notify';
import { RepositoryOffer } from './repository';
import type { SessionAPI } from './request';
import { SessionError } from './request';
import type { IPresets, IQueue, ISession, ISpecSchema, LaunchSpec } from './tokens';
import { IMPORTED_PRESET } from './tokens';

/** Values of the preset menu that are not names of presets. */
export const LAST_USED = ':last';
export const DEFAULTS = ':defaults';
export const AGAIN = ':again';

/** No preset can be called so: they mean something else in the menu, or in the address of a preset. */
const TAKEN = new Set([LAST_USED, DEFAULTS, AGAIN, '.', '..']);

/** The preset of this name, where there is one, is what the first launch starts from; later ones do from the last. */
const DEFAULT_PRESET = 'default';

/** Milliseconds between two looks at a session that is being given up, and how many there are. */
const LOOK_INTERVAL = 1_000;
const MOST_LOOKS = 60;

/** What the dialog is opened with. */
export interface ILaunchRequest {
  /** Options that are given from the start. */
  spec?: LaunchSpec;
  /** Begin with all options of this session, whatever stood in the dialog. */
  again?: { name: string; spec: LaunchSpec };
  /** The folder whose repository is offered; null where there is none. */
  folder?: string | null;
  /** That repository is asked for: take it at once, or say why not. */
  withRepository?: boolean;
}

/** The options, what the server offers for them, and what is wrong with them. */
export class LaunchDraft {
  constructor(
    private readonly _api: SessionAPI,
    private readonly _trans: TranslationBundle
  ) {
    this.repository = new RepositoryOffer(_api);
    this.repository.changed.connect(() => this._changed.emit());
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** The repository that can be cloned. */
  readonly repository: RepositoryOffer;
  /** Whether it was asked for: then it is also told why it cannot be. */
  repositoryAsked = false;
  /** Whether it is cloned. */
  repositoryTaken = false;
  /** The session that is launched again, if one is. */
  again: { name: string; spec: LaunchSpec } | null = null;
  /** What came of the last import of presets: the options that were not understood. */
  refusedImports: ReadonlyArray<string> | null = null;
  /** Null until loaded. */
  schema: ISpecSchema | null = null;
  queues: ReadonlyArray<IQueue> = [];
  presets: IPresets = { presets: {}, last: null };
  /** `LAST_USED`, `DEFAULTS`, `AGAIN` or the name of a preset. */
  chosen = DEFAULTS;
  values: LaunchSpec = {};
  errors: FieldErrors = {};
  /** A failure that concerns no single option. */
  failure: SessionError | null = null;
  /** How often a launch was refused for what stands in `errors`. */
  refused = 0;
  /** What is going on, if anything. */
  busy: 'loading' | 'launching' | 'saving' | null = null;

  /** Ask for what the dialog is drawn from; what was typed stays. Without a request, the last one is tried again. */
  async load(request: ILaunchRequest = this._request): Promise<void> {
    this._request = request;
    this.again = request.again ?? this.again;
    this.refusedImports = null;
    if (request.spec?.debugging_session) {
      this.takeRepository(false); // it has the repository of its Task
    }
    const looking = this._offer(request);
    if (this.schema) {
      // What is known will do: it can be launched at once, and what has changed comes when it comes.
      this.failure = null; // of another day
      this._begin(request, false);
      await this._ask().catch(reason => this._fail(SessionError.from(reason)));
      this._changed.emit();
    } else {
      await this._during('loading', async () => {
        await this._ask();
        this._begin(this._request, true); // another dialog may have been opened meanwhile
      });
    }
    await looking;
  }

  /** Whether `failure` tells that options and queues could not be had. */
  get isUnanswered(): boolean {
    return this.failure !== null && this.failure === this._unanswered;
  }

  /** Ask for options and queues again; what was typed stays. */
  async askAgain(): Promise<void> {
    await (this.schema ? this._during('loading', () => this._ask()) : this.load());
  }

  /** Take some values over from the form. */
  set(values: LaunchSpec): void {
    for (const [option, value] of Object.entries(values)) {
      if (!same(this.values[option], value)) {
        this._forgive(option);
      }
    }
    this.values = { ...this.values, ...values };
    const { found } = this.repository;
    if (found && !sameRepository(this.values.clone_repo, found.clone_repo)) {
      this.repositoryTaken = false; // changed by hand
    }
    this._changed.emit();
  }

  /** Begin from a preset, from the last launch, or from the defaults. */
  choose(name: string): void {
    this.chosen = name;
    const spec =
      name === LAST_USED
        ? withoutOnce(this.presets.last ?? {})
        : name === AGAIN
          ? (this.again?.spec ?? {})
          : (this.presets.presets[name] ?? {});
    this.values = { ...this._defaults(), ...known(spec, this.schema) };
    this.errors = {};
    this.failure = null;
    if (spec.clone_repo) {
      this.repositoryTaken = false; // it brings its own
    }
    this.takeRepository(this.repositoryTaken);
  }

  /** Look at the repository again; what is taken of it is what is shown, also where it could not be seen before. */
  async lookAgain(): Promise<void> {
    const { folder } = this.repository;
    await this._look(folder ?? '', this.repositoryTaken || this.repositoryAsked);
  }

  /** Clone the repository that was found, as it is shown, or do not. */
  takeRepository(taken: boolean): void {
    const { found } = this.repository;
    const was = this.repositoryTaken;
    this.repositoryTaken = taken && found !== null;
    if (this.repositoryTaken && found) {
      this.set({ clone_repo: found.clone_repo });
    } else if (was) {
      this.set({ clone_repo: {} });
    } else {
      this._changed.emit();
    }
  }

  /** Keep the options under a name. Left out are the password, and a repository as it happens to be just now. */
  async savePreset(name: string): Promise<boolean> {
    const { password: _, ...spec } = this.spec();
    if (this.repositoryTaken) {
      delete spec.clone_repo;
    }
    if (this.busy !== null || !this._check()) {
      return false;
    }
    return this._during('saving', async () => {
      if (TAKEN.has(name)) {
        const message = this._trans.__('A preset cannot be called “%1”.', name);
        throw new SessionError({ code: 'invalid_input', message }, 400);
      }
      this.presets = await this._api.savePreset(name, spec).catch(reason => {
        throw ofPreset(SessionError.from(reason));
      });
      this.chosen = name;
    });
  }

  /** Forget the chosen preset; the options stay as they are. */
  async deletePreset(): Promise<boolean> {
    const name = this.chosen;
    return this._during('saving', async () => {
      this.presets = await this._api.deletePreset(name);
      this.chosen = DEFAULTS;
    });
  }

  /** Make a preset of what the command line remembered, and begin with it. */
  async importPresets(): Promise<boolean> {
    return this._during('saving', async () => {
      const { refused, ...presets } = await this._api.importPresets();
      this.presets = presets;
      this.refusedImports = refused;
      this.choose(IMPORTED_PRESET);
    });
  }

  /** What would be launched: the options that differ from their defaults. */
  spec(): LaunchSpec {
    const defaults = this._defaults();
    const spec: LaunchSpec = {};
    for (const [option, value] of Object.entries(this.values)) {
      const pruned = prune(value);
      if (pruned !== null && !same(pruned, defaults[option])) {
        spec[option] = pruned;
      }
    }
    return spec;
  }

  /** Whether it can be launched: not while something is going on, or a repository that is wanted is looked for. */
  get launchable(): boolean {
    const wanted = this.repositoryAsked || this.repositoryTaken;
    return (
      this.busy === null && this.schema !== null && !(wanted && this.repository.looking)
    );
  }

  /** Launch; null where something is wrong, which is then told by `errors` and `failure`. */
  async launch(): Promise<ISession | null> {
    if (!this.launchable) {
      return null;
    }
    if (!this._check()) {
      return null;
    }
    const launching = this._api.launch(this.spec());
    const cancelled = (this._cancelled = new PromiseDelegate<null>());
    let session: ISession | null = null;
    await this._during('launching', async () => {
      session = await Promise.race([launching, cancelled.promise]);
    });
    if (!session) {
      // The server goes on with what it was asked for: nobody wants that session any more.
      void launching.then(
        unwanted => tell(() => discard(this._api, unwanted.id)),
        () => null // there is none
      );
    }
    return session;
  }

  /** Give a launch up that the server has not answered yet. */
  cancel(): void {
    this._cancelled?.resolve(null);
  }

  /** The groups of options, in the order of the schema. */
  groups(): string[] {
    return this.schema?.['x-groups'] ?? [];
  }

  /** The options of one group, as a schema of their own. */
  group(name: string): ISpecSchema {
    const properties = Object.entries(this.schema?.properties ?? {}).filter(
      ([, property]) => (property['x-group'] ?? 'advanced') === name
    );
    return { type: 'object', properties: Object.fromEntries(properties) };
  }

  private async _ask(): Promise<void> {
    const before = this.presets;
    try {
      const [schema, queues, presets] = await Promise.all([
        this._api.schema(),
        this._api.queues(),
        this._api.presets()
      ]);
      this.schema = schema;
      this.queues = queues;
      if (this.presets === before) {
        this.presets = presets; // else they were changed meanwhile, and the answer may be older
      }
    } catch (reason) {
      throw (this._unanswered = SessionError.from(reason));
    }
  }

  private _begin(request: ILaunchRequest, first: boolean): void {
    this._takeBack();
    if (request.again) {
      this.choose(AGAIN);
    } else if (first) {
      this.choose(this._first());
    }
    this.set(request.spec ?? {});
    this._brought = onlyOnce({ ...request.again?.spec, ...request.spec });
  }

  /** What the last request brought for its own launch, as the Task to debug, goes where nobody has changed it. */
  private _takeBack(): void {
    const defaults = this._defaults();
    for (const [option, value] of Object.entries(this._brought)) {
      if (same(this.values[option], value)) {
        this.set({ [option]: defaults[option] });
      }
    }
  }

  /** Look at the repository of the folder that is meant; one that was taken is kept, as it is now. */
  private async _offer(request: ILaunchRequest): Promise<void> {
    const kept = this.repositoryTaken && !request.withRepository;
    const folder = kept ? this.repository.folder : (request.folder ?? null);
    this.repositoryAsked = request.withRepository ?? false;
    if (folder !== null) {
      await this._look(folder, this.repositoryTaken || this.repositoryAsked);
    }
  }

  private async _look(folder: string, take: boolean): Promise<void> {
    await this.repository.look(folder);
    if (folder === this.repository.folder && !this.repository.looking) {
      this.takeRepository(take);
    }
  }

  /** What a launch starts from where nothing else is said. */
  private _first(): string {
    const { last, presets } = this.presets;
    if (last && Object.keys(last).length > 0) {
      return LAST_USED;
    }
    return DEFAULT_PRESET in presets ? DEFAULT_PRESET : DEFAULTS;
  }

  private _defaults(): LaunchSpec {
    const defaults: LaunchSpec = {};
    for (const [option, property] of Object.entries(this.schema?.properties ?? {})) {
      defaults[option] = property.default ?? empty(property);
    }
    return defaults;
  }

  /** Whether nothing stands in the options that the schema forbids; told by `errors`. */
  private _check(): boolean {
    this.errors = this.schema ? validate(this.schema, this.values, this._trans) : {};
    const good = Object.keys(this.errors).length === 0;
    if (!good) {
      this.refused += 1;
      this._changed.emit();
    }
    return good;
  }

  private _forgive(option: string): void {
    this.errors = Object.fromEntries(
      Object.entries(this.errors).filter(([field]) => field.split('.')[0] !== option)
    );
  }

  /** Run one thing, and no other beside it; true when it went well. */
  private async _during(
    busy: 'loading' | 'launching' | 'saving',
    run: () => Promise<void>
  ): Promise<boolean> {
    if (this.busy !== null) {
      return false;
    }
    this.busy = busy;
    this.failure = null;
    this._changed.emit();
    try {
      await run();
      return true;
    } catch (reason) {
      this._fail(SessionError.from(reason));
      return false;
    } finally {
      this.busy = null;
      this._changed.emit();
    }
  }

  private _fail(error: SessionError): void {
    const { field } = error;
    if (error.code === 'cancelled') {
      return;
    }
    if (field && this.schema && field.split('.')[0] in this.schema.properties) {
      this.errors = { ...this.errors, [field]: error.text };
      this.refused += 1;
    } else {
      this.failure = error;
    }
  }

  private readonly _changed = new Signal<this, void>(this);
  private _cancelled: PromiseDelegate<null> | null = null;
  private _request: ILaunchRequest = {};
  private _brought: LaunchSpec = {};
  private _unanswered: SessionError | null = null;
}

/** The name that is refused with a preset is its own, as that of the session is checked before. */
function ofPreset(error: SessionError): SessionError {
  const { detail: _, ...body } = error.body;
  return error.field === 'name' ? new SessionError(body, error.status) : error;
}

/** Shut a session down that nobody wants; of one that no agent has begun with, nothing is left. */
async function discard(api: SessionAPI, id: string): Promise<void> {
  let session = await api.shutdown(id);
  for (let look = 0; isLive(session) && !session.started && look < MOST_LOOKS; look++) {
    await new Promise(resolve => setTimeout(resolve, LOOK_INTERVAL));
    session = await api.session(id);
  }
  if (!isLive(session) && !session.started) {
    await api.purge(id);
  }
}
