/** A JSON-schema form for one group of launch options: the widgets and templates that make it readable. */
import type { TranslationBundle } from '@jupyterlab/translation';
import type { IFormComponentProps } from '@jupyterlab/ui-components';
import { FormComponent } from '@jupyterlab/ui-components';
import type {
  FieldProps,
  FieldTemplateProps,
  ObjectFieldTemplateProps,
  RJSFSchema,
  UiSchema,
  ValidatorType,
  WidgetProps
} from '@rjsf/utils';
import * as React from 'react';

import type { FieldErrors } from './launchValues';
import { queueText } from './text';
import type { IQueue, ISpecProperty, ISpecSchema, LaunchSpec } from './tokens';

/** Between the parts of an element's id; the first part is the group. */
const SEPARATOR = '.';

interface IContext {
  errors: FieldErrors;
  queues: ReadonlyArray<IQueue>;
  trans: TranslationBundle;
}

interface ISpecFormProps extends IContext {
  group: string;
  schema: ISpecSchema;
  values: LaunchSpec;
  disabled: boolean;
  onChange: (values: LaunchSpec) => void;
}

/** The form. The values are checked by the draft and by the server, so the form itself checks nothing. */
export function SpecForm(props: ISpecFormProps): JSX.Element {
  const { group, schema, values, disabled, errors, queues, trans, onChange } = props;
  const names = Object.keys(schema.properties);
  const context: IContext = { errors, queues, trans };
  const formSchema = React.useMemo(() => forForm(schema), [schema]);
  const uiSchema = React.useMemo(() => uiFor(schema), [schema]);
  return (
    <FormComponent
      schema={formSchema}
      uiSchema={uiSchema as IFormComponentProps['uiSchema']}
      formData={pick(values, names)}
      formContext={context}
      validator={NO_VALIDATOR}
      noValidate
      noHtml5Validate
      disabled={disabled}
      tagName="div"
      idPrefix={`jp-ClearML-${group}`}
      idSeparator={SEPARATOR}
      templates={TEMPLATES as IFormComponentProps['templates']}
      widgets={WIDGETS as IFormComponentProps['widgets']}
      fields={FIELDS}
      onChange={event => onChange(pick(event.formData as unknown as LaunchSpec, names))}
    />
  );
}

function pick(values: LaunchSpec, names: string[]): LaunchSpec {
  return Object.fromEntries(names.map(name => [name, values[name]]));
}

/** The form is given values for all options, so it needs no defaults, and no words of ours. */
function forForm(schema: ISpecSchema): RJSFSchema {
  const strip = (property: ISpecProperty): ISpecProperty => {
    const { default: _default, pattern: _pattern, ...rest } = property;
    return rest;
  };
  const properties = Object.entries(schema.properties).map(([name, property]) => [
    name,
    strip(property)
  ]);
  return {
    type: 'object',
    properties: Object.fromEntries(properties) as RJSFSchema['properties']
  };
}

function uiFor(schema: ISpecSchema): UiSchema {
  const ui: UiSchema = { 'ui:submitButtonOptions': { norender: true } };
  for (const [name, property] of Object.entries(schema.properties)) {
    ui[name] = uiForProperty(name, property);
  }
  return ui;
}

function uiForProperty(name: string, property: ISpecProperty): UiSchema {
  if (name === 'queue') {
    return { 'ui:widget': 'queue' };
  }
  if (property['x-multiline']) {
    return { 'ui:widget': 'textarea' };
  }
  if (property.writeOnly || property.format === 'password') {
    return { 'ui:widget': 'password', 'ui:autocomplete': 'new-password' };
  }
  if (property.type === 'array') {
    return { 'ui:widget': 'lines' };
  }
  if (property.type === 'object' && property.properties) {
    return uiFor({ type: 'object', properties: property.properties });
  }
  if (property.type === 'object') {
    return { 'ui:field': 'variables' };
  }
  return {};
}

// -- templates ------------------------------------------------------------------------------------------------

function fieldOf(id: string): string {
  return id.split(SEPARATOR).slice(1).join(SEPARATOR);
}

function FieldTemplate(props: FieldTemplateProps): JSX.Element {
  const { id, label, children, schema, uiSchema, formContext, hidden } = props;
  const { errors, trans } = formContext as IContext;
  const field = fieldOf(id);
  // The schema's words are for whom types a name.
  const description =
    field === 'queue'
      ? trans.__(
          '“Choose for me” takes the first queue tagged “interactive”, or else the first one allowed.'
        )
      : schema.description;
  const error = errors[field];
  if (hidden || field === '') {
    return <>{children}</>;
  }
  const nested = schema.type === 'object' && !uiSchema?.['ui:field'];
  const isCheckbox = schema.type === 'boolean';
  const Box = nested ? 'fieldset' : 'div';
  const Label = nested ? 'legend' : 'label';
  return (
    <Box className="jp-ClearML-field" data-field={field} data-invalid={Boolean(error)}>
      {!isCheckbox && (
        <Label {...(nested ? {} : { htmlFor: id })} className="jp-ClearML-label">
          {label}
        </Label>
      )}
      {children}
      {description && (
        <p id={`${id}__description`} className="jp-ClearML-dim">
          {description}
        </p>
      )}
      {error && (
        <p id={`${id}__error`} role="alert" className="jp-ClearML-fieldError">
          {error}
        </p>
      )}
    </Box>
  );
}

function ObjectFieldTemplate(props: ObjectFieldTemplateProps): JSX.Element {
  return <>{props.properties.map(property => property.content)}</>;
}

// -- widgets --------------------------------------------------------------------------------------------------

/** What every control tells a screen reader. */
function described(id: string, context: IContext) {
  return {
    id,
    'aria-invalid': fieldOf(id) in context.errors,
    'aria-describedby': `${id}__description ${id}__error`
  };
}

function Text(props: WidgetProps): JSX.Element {
  const { id, value, disabled, onChange, formContext, schema, autocomplete } = props;
  const number = schema.type === 'number' || schema.type === 'integer';
  const type = number ? 'number' : schema.writeOnly ? 'password' : 'text';
  return (
    <input
      {...described(id, formContext as IContext)}
      className="jp-ClearML-input"
      type={type}
      spellCheck={false}
      autoComplete={autocomplete ?? 'off'}
      min={schema.minimum}
      disabled={disabled}
      value={(value as string | number | undefined) ?? ''}
      onChange={event => {
        const text = event.target.value;
        // Emptied, a number is not said: what the server takes then is its default.
        onChange(number ? (text === '' ? undefined : Number(text)) : text);
      }}
    />
  );
}

function TextArea(props: WidgetProps): JSX.Element {
  const { id, value, disabled, onChange, formContext } = props;
  return (
    <textarea
      {...described(id, formContext as IContext)}
      className="jp-ClearML-input"
      rows={4}
      spellCheck={false}
      disabled={disabled}
      value={(value as string | undefined) ?? ''}
      onChange={event => onChange(event.target.value)}
    />
  );
}

/** A list of texts, one a line. */
function Lines(props: WidgetProps): JSX.Element {
  const { id, disabled, onChange, formContext } = props;
  const value = (props.value as string[] | undefined) ?? [];
  return (
    <textarea
      {...described(id, formContext as IContext)}
      className="jp-ClearML-input"
      rows={Math.min(8, Math.max(2, value.length + 1))}
      spellCheck={false}
      placeholder={(formContext as IContext).trans.__('One a line')}
      disabled={disabled}
      value={value.join('\n')}
      onChange={event => {
        const text = event.target.value;
        onChange(text === '' ? [] : text.split('\n'));
      }}
    />
  );
}

function Checkbox(props: WidgetProps): JSX.Element {
  const { id, value, label, disabled, onChange, formContext } = props;
  return (
    <label className="jp-ClearML-check">
      <input
        {...described(id, formContext as IContext)}
        type="checkbox"
        disabled={disabled}
        checked={Boolean(value)}
        onChange={event => onChange(event.target.checked)}
      />
      {label}
    </label>
  );
}

function Select(props: WidgetProps): JSX.Element {
  const { id, value, disabled, onChange, formContext, schema } = props;
  return (
    <select
      {...described(id, formContext as IContext)}
      className="jp-ClearML-input"
      disabled={disabled}
      value={value as string}
      onChange={event => onChange(event.target.value)}
    >
      {((schema.enum ?? []) as string[]).map(choice => (
        <option key={choice} value={choice}>
          {choice}
        </option>
      ))}
    </select>
  );
}

/** The queues, with what waits in them and who serves them. */
function QueueSelect(props: WidgetProps): JSX.Element {
  const { id, disabled, onChange, formContext } = props;
  const value = (props.value as string | undefined) ?? '';
  const { queues, trans } = formContext as IContext;
  const chosen = queues.find(queue => queue.name === value || queue.id === value);
  return (
    <select
      {...described(id, formContext as IContext)}
      className="jp-ClearML-input"
      disabled={disabled}
      value={chosen?.name ?? value}
      onChange={event => onChange(event.target.value)}
    >
      <option value="">{trans.__('Choose for me')}</option>
      {value && !chosen && (
        <option value={value}>{trans.__('%1 (not on this server)', value)}</option>
      )}
      {queues.map(queue => (
        <option key={queue.id} value={queue.name}>
          {queueText(queue, trans)}
        </option>
      ))}
    </select>
  );
}

/** Environment variables, as `NAME=value` lines. */
function Variables(props: FieldProps): JSX.Element {
  const { idSchema, disabled, onChange, formContext } = props;
  const given = variablesToText((props.formData as { [name: string]: string }) ?? {});
  const [text, setText] = React.useState(given);
  // The text is the user's own until the value is changed from elsewhere (a preset).
  React.useEffect(() => {
    setText(old => (variablesToText(textToVariables(old)) === given ? old : given));
  }, [given]);
  return (
    <textarea
      {...described(idSchema.$id, formContext as IContext)}
      className="jp-ClearML-input"
      rows={3}
      spellCheck={false}
      placeholder="NAME=value"
      disabled={disabled}
      value={text}
      onChange={event => {
        setText(event.target.value);
        onChange(textToVariables(event.target.value));
      }}
    />
  );
}

/** Variables as lines. */
export function variablesToText(variables: { [name: string]: string }): string {
  return Object.entries(variables)
    .map(([name, value]) => `${name}=${value}`)
    .join('\n');
}

/** Lines as variables; a line without `=` is a name whose value is still to be typed. */
export function textToVariables(text: string): { [name: string]: string } {
  const variables: { [name: string]: string } = {};
  for (const line of text.split('\n')) {
    const at = line.indexOf('=');
    const name = (at === -1 ? line : line.slice(0, at)).trim();
    if (name) {
      variables[name] = at === -1 ? '' : line.slice(at + 1);
    }
  }
  return variables;
}

const TEMPLATES = { FieldTemplate, ObjectFieldTemplate };
const WIDGETS = {
  TextWidget: Text,
  PasswordWidget: Text,
  TextareaWidget: TextArea,
  CheckboxWidget: Checkbox,
  SelectWidget: Select,
  UpDownWidget: Text,
  lines: Lines,
  queue: QueueSelect
};
const FIELDS = { variables: Variables };

const NO_VALIDATOR: ValidatorType = {
  validateFormData: () => ({ errors: [], errorSchema: {} }),
  toErrorList: () => [],
  isValid: () => true,
  rawValidation: () => ({ errors: [] })
};
