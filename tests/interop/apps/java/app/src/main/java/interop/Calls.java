package interop;

import java.util.concurrent.CompletableFuture;

/** How an SDK calls Echo. */
public interface Calls {
    /** Makes one call and waits for its result. */
    String call(Target target, String method, String text) throws Throwable;

    /** Makes one call by the SDK's asynchronous means. */
    CompletableFuture<String> callAsync(Target target, String method, String text);

    /** Names an exception: its class, and the SDK's code for the cause if it has one. */
    String name(Throwable error);

    /**
     * A service and how it is called.
     *
     * @param name distinguishes services: SOFARPC's unique id, Dubbo's group; null without
     * @param version the service's version; null for the SDK's default
     * @param serialization null for the SDK's default
     * @param timeout of a call, in milliseconds
     */
    record Target(String name, String version, String serialization, int timeout) {}
}
