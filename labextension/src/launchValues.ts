/** Values of launch options: what is wrong with them, which are left out, which are the same. Pure. */
import type { TranslationBundle } from '@jupyterlab/translation';

import type { ISpecProperty, ISpecSchema, LaunchSpec, SpecValue } from './tokens';

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

/** Messages by option; nested ones as `clone_repo.url`. */
export type FieldErrors = { [option: string]: string };

/** Check what the schema can tell by itself; the server checks again, and more. */
export function validate(
  schema: ISpecSchema,
  values: LaunchSpec,
  trans: TranslationBundle
): FieldErrors {
  const errors: FieldErrors = {};
  for (const [option, property] of Object.entries(schema.properties)) {
    const message = check(property, values[option], trans);
    if (message) {
      errors[option] = message;
    }
  }
  return errors;
}

function check(
  property: ISpecProperty,
  value: SpecValue | undefined,
  trans: TranslationBundle
): string | null {
  const { minLength, maxLength, pattern, minimum, maximum } = property;
  if (typeof value === 'string' && value !== '') {
    if (minLength !== undefined && value.length < minLength) {
      return trans._n('At least %1 character', 'At least %1 characters', minLength);
    }
    if (maxLength !== undefined && value.length > maxLength) {
      return trans._n('At most %1 character', 'At most %1 characters', maxLength);
    }
    if (pattern !== undefined && !new RegExp(pattern).test(value)) {
      return pattern.includes('{32}')
        ? trans.__('Not an id: 32 characters, 0 to 9 and a to f')
        : trans.__('Not in the right form');
    }
  }
  if (typeof value === 'number') {
    if (minimum !== undefined && value < minimum) {
      return trans.__('At least %1', minimum);
    }
    if (maximum !== undefined && value > maximum) {
      return trans.__('At most %1', maximum);
    }
  }
  return null;
}

/** What stands for no value. */
export function empty(property: ISpecProperty): SpecValue {
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
export function prune(value: SpecValue | undefined): SpecValue {
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

/** What the next launch takes over from the last one. */
export function withoutOnce(spec: LaunchSpec): LaunchSpec {
  return Object.fromEntries(
    Object.entries(spec).filter(([option]) => !ONCE.has(option))
  );
}

/** Those that belong to one launch. */
export function onlyOnce(spec: LaunchSpec): LaunchSpec {
  return Object.fromEntries(
    Object.entries(spec).filter(([option]) => ONCE.has(option))
  );
}

/** A preset of another version may hold options that are gone, and `null` where there is a default. */
export function known(spec: LaunchSpec, schema: ISpecSchema | null): LaunchSpec {
  return Object.fromEntries(
    Object.entries(spec).filter(
      ([option, value]) =>
        value !== null && schema !== null && option in schema.properties
    )
  );
}

/** Whether two values of `clone_repo` mean the same. */
export function sameRepository(
  a: SpecValue | undefined,
  b: SpecValue | undefined
): boolean {
  const parts = (value: SpecValue | undefined) => {
    const { url, branch, commit, diff } = (value ?? {}) as { [part: string]: string };
    return [url, branch, commit, diff].map(part => part ?? '').join('\0');
  };
  return parts(a) === parts(b);
}

/** Whether two values are equal. */
export function same(a: SpecValue | undefined, b: SpecValue | undefined): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
