/** The commands: the only place from which this extension acts. Panel, palette, launcher and menus run them. */
import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { TranslationBundle } from '@jupyterlab/translation';

import { addGlobalCommands } from './globalCommands';
import type { Launcher } from './launchDialog';
import type { Progress } from './progress';
import { addSessionCommands } from './sessionCommands';
import type { ISessionModel } from './tokens';
import type { Views } from './views';

/** What the commands need. */
export interface ICommandOptions {
  app: Pick<JupyterFrontEnd, 'commands' | 'shell' | 'serviceManager'>;
  model: ISessionModel;
  views: Views;
  launcher: Launcher;
  progress: Progress;
  trans: TranslationBundle;
  /** Shows the side panel. */
  showPanel: () => void;
  /** Whether a shutdown asks first. */
  confirmShutdown: () => boolean;
  /** The folder of this server that the default file browser shows. */
  shownFolder: () => string | null;
  /** The folder of this server that is meant in the file browser in use; null where its files are elsewhere. */
  chosenFolder: () => string | null;
}

/** Add all commands to the registry. */
export function addCommands(options: ICommandOptions): void {
  addGlobalCommands(options);
  addSessionCommands(options);
}
