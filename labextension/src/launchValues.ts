/** Values of launch options: what is wrong with them, which are left out, which are the same. Pure. */
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
