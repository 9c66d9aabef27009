// A Dubbo consumer that calls the address that it is told.
'use strict';

const { DirectlyDubbo, java } = require('apache-dubbo-js');
const { main } = require('./app');

async function consume({ address }) {
  const clients = {}; // by timeout: each has a connection
  const services = {}; // by target

  function service({ name, version, timeout }) {
    clients[timeout] = clients[timeout] || DirectlyDubbo.from({
      dubboAddress: address,
      dubboVersion: '2.0.2',
      dubboInvokeTimeout: timeout / 1000,
    });
    const method = text => [ java.String(text) ];
    return clients[timeout].proxyService({
      dubboInterface: 'interop.Echo',
      group: name || undefined,
      version: version || '0.0.0',
      timeout,
      methods: { echo: method, hold: method, fail: method },
    });
  }

  return async (target, method, text) => {
    const key = JSON.stringify(target);
    services[key] = services[key] || service(target);
    const { res, err } = await services[key][method](text);
    if (err) {
      throw err;
    }
    return res;
  };
}

main({ consume });
