using Dmp.Host;

return await CommandLine.InvokeAsync(args, HostEnvironment.Real()).ConfigureAwait(false);
