// SOFARPC over Bolt. It has no mesh registry: a client calls the address that it is told.
'use strict';

const { RpcClient } = require('sofa-rpc-node').client;
const { RpcServer } = require('sofa-rpc-node').server;
const { main, logger } = require('./app');

const INTERFACE = 'interop.Echo';

async function provide({ port }, service) {
  const server = new RpcServer({ logger, port, appName: 'interop-provider' });
  // The SDK looks methods up in an object of its own.
  const delegate = {
    echo: async text => service.echo(text),
    hold: async text => service.hold(text),
    fail: async text => service.fail(text),
  };
  for (const uniqueId of [ '', 'named' ]) {
    server.addService({ interfaceName: INTERFACE, uniqueId }, delegate);
  }
  await server.start();
}

async function consume({ address }) {
  const client = new RpcClient({ logger });
  client.on('error', error => logger.error(error));
  const consumers = {};

  async function consumer(name) {
    const created = client.createConsumer({
      interfaceName: INTERFACE,
      version: name ? `1.0:${name}` : '1.0',
      serverHost: address,
    });
    await created.ready();
    return created;
  }

  return async ({ name, timeout }, method, text) => {
    consumers[name] = consumers[name] || consumer(name);
    return (await consumers[name]).invoke(method, [ text ], { responseTimeout: timeout });
  };
}

main({ provide, consume });
