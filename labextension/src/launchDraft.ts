/**
 * What is being typed into the launch dialog. It outlives the dialog: nothing that was typed is lost when the
 * dialog is closed, or when the server refuses the launch.
 */
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import type { SessionAPI } from './request';
import { SessionError } from './request';
import type {
  IPresets,
  IQueue,
  ISession,
  ISpecProperty,
  ISpecSchema,
  LaunchSpec,
  SpecValue
} from './tokens';

/** Options that belong to one launch: not taken over from the last one. */
const ONCE = new Set([
  'name',
  'password',
  'debugging_session',
  'base_task_id',
  'continue_session',
  'upload_files',
  'clone_repo'
]);

/** Values of the preset menu that are not names of presets. */
export const LAST_USED = ':last';
export const DEFAULTS = ':defaults';

/** Messages by option; nested ones as `clone_repo.url`. */
export type FieldErrors = { [option: string]: string };

/** The options, what the server offers for them, and what is wrong with them. */
export class LaunchDraft {
  constructor(private readonly _api: SessionAPI) {}

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** Null until loaded. */
  schema: ISpecSchema | null = null;
  queues: ReadonlyArray<IQueue> = [];
  presets: IPresets = { presets: {}, last: null };
  /** `LAST_USED`, `DEFAULTS` or the name of a preset. */
  chosen = DEFAULTS;
  values: LaunchSpec = {};
  errors: FieldErrors = {};
  /** A failure that concerns no single option. */
  failure: SessionError | null = null;
  /** How often a launch was refused for what stands in `errors`. */
  refused = 0;
  /** What is going on, if anything. */
  busy: 'loading' | 'launching' | 'saving' | null = null;

  /** Ask for what the dialog is drawn from; what was typed stays. */
  async load(overrides: LaunchSpec = {}): Promise<void> {
    const first = this.schema === null;
    await this._during('loading', async () => {
      const [schema, queues, presets] = await Promise.all([
        this._api.schema(),
        this._api.queues(),
        this._api.presets()
      ]);
      this.schema = schema;
      this.queues = queues;
      this.presets = presets;
      if (first) {
        const last = presets.last;
        this.choose(last && Object.keys(last).length > 0 ? LAST_USED : DEFAULTS);
      }
      this.set(overrides);
    });
  }

  /** Take some values over from the form. */
  set(values: LaunchSpec): void {
    for (const [option, value] of Object.entries(values)) {
      if (!same(this.values[option], value)) {
        this._forgive(option);
      }
    }
    this.values = { ...this.values, ...values };
    this._changed.emit();
  }

  /** Begin from a preset, from the last launch, or from the defaults. */
  choose(name: string): void {
    this.chosen = name;
    const spec =
      name === LAST_USED
        ? withoutOnce(this.presets.last ?? {})
        : (this.presets.presets[name] ?? {});
    this.values = { ...this._defaults(), ...known(spec, this.schema) };
    this.errors = {};
    this.failure = null;
    this._changed.emit();
  }

  /** Keep the options under a name; the password is left out. */
  async savePreset(name: string): Promise<boolean> {
    const { password: _, ...spec } = this.spec();
    return this._during('saving', async () => {
      this.presets = await this._api.savePreset(name, spec);
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

  /** Launch; null where something is wrong, which is then told by `errors` and `failure`. */
  async launch(): Promise<ISession | null> {
    if (this.busy || !this.schema) {
      return null;
    }
    this.errors = validate(this.schema, this.values);
    if (Object.keys(this.errors).length > 0) {
      this.refused += 1;
      this._changed.emit();
      return null;
    }
    this._aborter = new AbortController();
    const { signal } = this._aborter;
    let session: ISession | null = null;
    await this._during('launching', async () => {
      session = await this._api.launch(this.spec(), signal);
    });
    return session;
  }

  /** Give a launch up that the server has not answered yet. */
  cancel(): void {
    this._aborter?.abort();
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

  private _defaults(): LaunchSpec {
    const defaults: LaunchSpec = {};
    for (const [option, property] of Object.entries(this.schema?.properties ?? {})) {
      defaults[option] = property.default ?? empty(property);
    }
    return defaults;
  }

  private _forgive(option: string): void {
    this.errors = Object.fromEntries(
      Object.entries(this.errors).filter(([field]) => field.split('.')[0] !== option)
    );
  }

  /** Run one thing; true when it went well. */
  private async _during(
    busy: 'loading' | 'launching' | 'saving',
    run: () => Promise<void>
  ): Promise<boolean> {
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
      const text = error.hint ? `${error.message} ${error.hint}` : error.message;
      this.errors = { ...this.errors, [field]: text };
      this.refused += 1;
    } else {
      this.failure = error;
    }
  }

  private readonly _changed = new Signal<this, void>(this);
  private _aborter: AbortController | null = null;
}

/** Check what the schema can tell by itself; the server checks again, and more. */
export function validate(schema: ISpecSchema, values: LaunchSpec): FieldErrors {
  const errors: FieldErrors = {};
  for (const [option, property] of Object.entries(schema.properties)) {
    const message = check(property, values[option]);
    if (message) {
      errors[option] = message;
    }
  }
  return errors;
}

function check(property: ISpecProperty, value: SpecValue | undefined): string | null {
  if (typeof value === 'string' && value !== '') {
    if (property.minLength !== undefined && value.length < property.minLength) {
      return `At least ${property.minLength} characters`;
    }
    if (property.maxLength !== undefined && value.length > property.maxLength) {
      return `At most ${property.maxLength} characters`;
    }
    if (property.pattern !== undefined && !new RegExp(property.pattern).test(value)) {
      return property.pattern.includes('{32}')
        ? 'Not an id: 32 characters, 0 to 9 and a to f'
        : 'Not in the right form';
    }
  }
  if (typeof value === 'number') {
    if (property.minimum !== undefined && value < property.minimum) {
      return `At least ${property.minimum}`;
    }
    if (property.maximum !== undefined && value > property.maximum) {
      return `At most ${property.maximum}`;
    }
  }
  return null;
}

function empty(property: ISpecProperty): SpecValue {
  switch (property.type) {
    case 'boolean':
      return false;
    case 'array':
      return [];
    case 'object':
      return {};
    case 'number':
    case 'integer':
      return 0;
    default:
      return '';
  }
}

/** Options without a value are left out of a launch. */
function prune(value: SpecValue | undefined): SpecValue {
  if (value === undefined || value === null) {
    return null;
  }
  if (typeof value === 'string') {
    return value.trim() === '' ? null : value;
  }
  if (Array.isArray(value)) {
    const lines = value.map(line => line.trim()).filter(line => line !== '');
    return lines.length > 0 ? lines : null;
  }
  if (typeof value === 'object') {
    const entries = Object.entries(value).filter(([, text]) => text !== '');
    return entries.length > 0 ? Object.fromEntries(entries) : null;
  }
  return value;
}

function withoutOnce(spec: LaunchSpec): LaunchSpec {
  return Object.fromEntries(
    Object.entries(spec).filter(([option]) => !ONCE.has(option))
  );
}

/** A preset of another version may hold options that are gone, and `null` where there is a default. */
function known(spec: LaunchSpec, schema: ISpecSchema | null): LaunchSpec {
  return Object.fromEntries(
    Object.entries(spec).filter(
      ([option, value]) =>
        value !== null && schema !== null && option in schema.properties
    )
  );
}

function same(a: SpecValue | undefined, b: SpecValue | undefined): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
