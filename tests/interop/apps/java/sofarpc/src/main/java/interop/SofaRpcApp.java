package interop;

import com.alipay.sofa.rpc.common.RpcConfigs;
import com.alipay.sofa.rpc.common.RpcOptions;
import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ConsumerConfig;
import com.alipay.sofa.rpc.config.ProviderConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;
import com.alipay.sofa.rpc.config.ServerConfig;
import com.alipay.sofa.rpc.context.RpcInvokeContext;
import com.alipay.sofa.rpc.context.RpcRuntimeContext;
import com.alipay.sofa.rpc.core.exception.SofaRpcException;
import com.alipay.sofa.rpc.core.invoke.SofaResponseCallback;
import com.alipay.sofa.rpc.core.request.RequestBase;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;

/** SOFARPC over Bolt, with its mesh registry or without a registry. */
public final class SofaRpcApp implements App.Sdk {
    /** Unique ids under which the service is provided; null is none. */
    private static final String[] NAMES = {null, "named"};

    private SofaRpcApp() {}

    public static void main(String[] arguments) throws Exception {
        App.main(new SofaRpcApp(), arguments[0]);
    }

    @Override
    public void provide(App.Options options, EchoService service) {
        ServerConfig server = new ServerConfig()
                .setProtocol("bolt")
                .setPort(options.port())
                .setCoreThreads(options.threads())
                .setMaxThreads(options.threads())
                .setQueues(options.queue());
        for (String name : NAMES) {
            ProviderConfig<Echo> provider = new ProviderConfig<Echo>()
                    .setApplication(new ApplicationConfig().setAppName("interop-provider"))
                    .setInterfaceId(Echo.class.getName())
                    .setRef(service)
                    .setServer(server);
            if (name != null) {
                provider.setUniqueId(name);
            }
            if (options.registry() != null) {
                provider.setRegistry(mesh(options.registry()));
            }
            provider.export();
        }
    }

    @Override
    public Calls consume(App.Options options) {
        // Without room for the callbacks, the SDK loses those of many calls that end at once.
        RpcConfigs.putValue(RpcOptions.ASYNC_POOL_QUEUE, 100_000);
        return new SofaRpcCalls(options);
    }

    @Override
    public void close() {
        RpcRuntimeContext.destroy();
    }

    private static RegistryConfig mesh(String address) {
        return new RegistryConfig().setProtocol("mesh").setAddress(address);
    }

    private record SofaRpcCalls(App.Options options, Map<Key, Echo> proxies) implements Calls {
        private record Key(Target target, String invokeType) {}

        SofaRpcCalls(App.Options options) {
            this(options, new ConcurrentHashMap<>());
        }

        @Override
        public String call(Target target, String method, String text) {
            return invoke(proxy(target, "sync"), method, text);
        }

        @Override
        public CompletableFuture<String> callAsync(Target target, String method, String text) {
            CompletableFuture<String> future = new CompletableFuture<>();
            RpcInvokeContext.getContext().setResponseCallback(new SofaResponseCallback<String>() {
                @Override
                public void onAppResponse(Object response, String methodName, RequestBase request) {
                    future.complete((String) response);
                }

                @Override
                public void onAppException(Throwable error, String methodName, RequestBase request) {
                    future.completeExceptionally(error);
                }

                @Override
                public void onSofaException(SofaRpcException error, String methodName, RequestBase request) {
                    future.completeExceptionally(error);
                }
            });
            try {
                invoke(proxy(target, "callback"), method, text);
            } catch (RuntimeException e) {
                future.completeExceptionally(e);
            }
            return future;
        }

        @Override
        public String name(Throwable error) {
            String name = error.getClass().getSimpleName();
            return error instanceof SofaRpcException e ? name + "(" + e.getErrorType() + ")" : name;
        }

        private static String invoke(Echo proxy, String method, String text) {
            return switch (method) {
                case "echo" -> proxy.echo(text);
                case "hold" -> proxy.hold(text);
                default -> proxy.fail(text);
            };
        }

        private Echo proxy(Target target, String invokeType) {
            return proxies.computeIfAbsent(new Key(target, invokeType), this::refer);
        }

        private Echo refer(Key key) {
            ConsumerConfig<Echo> consumer = new ConsumerConfig<Echo>()
                    .setApplication(new ApplicationConfig().setAppName("interop-consumer"))
                    .setInterfaceId(Echo.class.getName())
                    .setProtocol("bolt")
                    .setInvokeType(key.invokeType())
                    .setReconnectPeriod(1000)
                    .setRepeatedReferLimit(-1) // each target has its own
                    .setTimeout(key.target().timeout());
            if (key.target().name() != null) {
                consumer.setUniqueId(key.target().name());
            }
            if (key.target().serialization() != null) {
                consumer.setSerialization(key.target().serialization());
            }
            if (options.registry() != null) {
                consumer.setRegistry(mesh(options.registry()));
            } else {
                consumer.setDirectUrl("bolt://" + options.address());
            }
            return consumer.refer();
        }
    }
}
