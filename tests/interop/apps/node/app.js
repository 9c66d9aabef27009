// An application that its test drives by lines of JSON; see tests/interop/apps/README.md.
'use strict';

const readline = require('readline');

// The provider's side of Echo, with the gate that its test opens and closes.
class EchoService {
  constructor() {
    this.open = false;
    this.waiting = [];
  }

  async echo(text) {
    return text;
  }

  async hold(text) {
    if (!this.open) {
      await new Promise(resolve => this.waiting.push(resolve));
    }
    return text;
  }

  async fail(text) {
    throw new Error(text);
  }

  gate(open) {
    this.open = open;
    if (open) {
      this.waiting.splice(0).forEach(resolve => resolve());
    }
  }
}

// Callers that make one call after the other, all at the same time, until the calls are made or the run is stopped.
class Run {
  constructor(call, { method, calls, callers, size, target }) {
    Object.assign(this, { call, method, calls, callers, size, target, stopped: false });
    this.filling = '0123456789abcdef'.repeat(size / 16 + 1);
    this.counts = { started: 0, finished: 0, ok: 0, wrong: 0, errors: {}, messages: {} };
  }

  start() {
    for (let caller = 0; caller < this.callers; caller++) {
      this.callOn();
    }
  }

  // What happened so far; `done` when nothing more will.
  look() {
    const { started, finished } = this.counts;
    return { ...this.counts, done: started === finished && (this.stopped || started === this.calls) };
  }

  async callOn() {
    while (!this.stopped && this.counts.started !== this.calls) {
      const prefix = `${this.counts.started++}:`; // no two calls have the same text
      const text = prefix + this.filling.slice(0, Math.max(0, this.size - prefix.length));
      try {
        const result = await this.call(this.target, this.method, text);
        this.counts[result === text ? 'ok' : 'wrong']++;
      } catch (error) {
        const { name, message } = error;
        this.counts.errors[name] = (this.counts.errors[name] || 0) + 1;
        this.counts.messages[name] = String(message);
      }
      this.counts.finished++;
    }
  }
}

// Run an application until its standard input ends. `sdk` has
//   provide(options, service)  provides the service
//   consume(options)           returns an asynchronous function (target, method, text) that makes one call
async function main(sdk) {
  const answer = value => process.stdout.write(JSON.stringify(value) + '\n');
  const options = JSON.parse(process.argv[2]);
  const service = new EchoService();
  const runs = {};
  const call = options.role === 'provider' ? await sdk.provide(options, service) : await sdk.consume(options);
  const actions = {
    start(command) {
      runs[command.run] = new Run(call, command);
      runs[command.run].start();
    },
    stop({ run }) {
      runs[run].stopped = true;
    },
    look({ run }) {
      return runs[run].look();
    },
    gate({ open }) {
      service.gate(open);
    },
    held() {
      return { held: service.waiting.length };
    },
  };
  answer({ ready: true });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    answer(actions[command.action](command) || {});
  }
  process.exit(0);
}

// SDKs log to the standard error output, because the standard output is for the test.
const logger = new console.Console(process.stderr);

module.exports = { main, logger };
